"""The playground: a FastAPI app and one static page, nothing loaded from elsewhere."""
