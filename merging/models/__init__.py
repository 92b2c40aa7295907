"""How a network is read and run, one file per kind."""
