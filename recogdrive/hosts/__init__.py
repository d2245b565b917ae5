"""Several processes that make one run, usually one a host: who they are, how they begin together and end together."""
