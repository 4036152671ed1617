"""Is a change of score within what is allowed? `tolerance` decides, by tests of paired rows."""
