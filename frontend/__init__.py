"""The HTTP edge: OpenAI requests in, JSON or SSE out; knows no provider."""
