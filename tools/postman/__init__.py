"""Makes the Postman collection: requests in the order in which a newcomer sends them."""
