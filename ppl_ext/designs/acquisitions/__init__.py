"""Where to measure next: how much each candidate would tell, by what is believed of a function."""
