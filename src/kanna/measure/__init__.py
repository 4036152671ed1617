"""What a model costs to run: `bench` (latency, memory, energy, price), and the shape of its result."""
