"""What a model computes on text: token windows, a walk over blocks one at a time, input statistics."""
