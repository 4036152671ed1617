"""What searches share, whatever they try: `halving` on parts of the rows, a `journal`, `explore`."""
