"""Recipes: chains of steps, written down. `schema` is what a recipe may say, `recipe` reads and runs one."""
