"""Segue over HTTP: an API in OpenAI's form whose answers carry regions."""
