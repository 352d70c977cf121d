"""What every transport reads and writes: documents, bodies, states; checked before anything uses it."""
