"""Serve: models behind the routes of OpenAI, Cohere and Jina, safe by default. Started by `broadsheet serve`."""
