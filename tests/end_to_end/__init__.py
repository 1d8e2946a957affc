"""The whole gateway: real processes, a real Redis, real upstream protocols, the real OpenAI SDK as caller."""
