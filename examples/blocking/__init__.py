"""Work inside the request and in the background, to see why there are workers at all."""
