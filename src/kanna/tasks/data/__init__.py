"""Task files: `rows` reads them, `task` names them, `check` looks them over, `split` parts them."""
