"""Local data: finding files, cutting them into chunks, and looking chunks up by digest."""
