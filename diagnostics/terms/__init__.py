"""What bound (5) is made of: the linearised tasks, the network, the experts' side, the merge's side, the path."""
