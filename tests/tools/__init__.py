"""Commands that are no tests of their own: contract, fuzz, pictures, clients, the table of the house."""
