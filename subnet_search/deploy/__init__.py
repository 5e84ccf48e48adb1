"""What can be made of a subnetwork: files that are smaller or faster, with measured proof."""
