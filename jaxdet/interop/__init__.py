"""Other libraries' weights: `python -m jaxdet convert`, and a training that starts from them."""
