"""Programs that make files of this repository; the service needs none of them."""
