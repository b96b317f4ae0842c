"""`fiat report`: what a run left in its working directory, as one page, or as tables for other documents."""
