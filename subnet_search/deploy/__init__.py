"""Export subnetworks to smaller or faster formats, with measured sizes and latencies."""
