"""A guide that is a network of the data, made once and asked often."""
