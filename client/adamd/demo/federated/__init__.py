"""The demo of rounds: twenty processes learn together through a server that is killed in a round."""
