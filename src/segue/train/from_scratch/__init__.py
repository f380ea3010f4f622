"""What only a model that begins from nothing needs: its first weights, and targets for its prompts."""
