"""What the gateway costs: beside the engine alone, and beside other gateways, in the same run."""
