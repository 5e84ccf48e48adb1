"""One run: its configuration, its folder, the subnetwork it finds, and what that is worth."""
