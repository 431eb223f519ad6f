"""What an agent is set to do: questions, programs, and worlds made of text."""
