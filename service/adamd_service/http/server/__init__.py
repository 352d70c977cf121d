"""Extensions of uvicorn's connections: bounds, bodies without copies, checks of Host and Origin."""
