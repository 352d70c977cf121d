"""The demo: training on real images through a server that is killed in the middle."""
