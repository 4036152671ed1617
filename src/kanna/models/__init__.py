"""What a model is made of: `inventory` lists its matrices, `selection` picks some, `views` read them."""
