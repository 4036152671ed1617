"""What searches share, whatever they try: `halving`, a `journal`, `parts` of the rows, `explore`."""
