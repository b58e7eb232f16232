"""A page on which a person looks through masks, least confident first, and says which are good."""
