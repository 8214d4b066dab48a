"""How the model is run: families, inputs, both engines' parts."""
