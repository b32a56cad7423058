"""The child processes that hear, speak and think, and the supervisor that keeps them alive."""
