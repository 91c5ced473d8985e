"""Images and where they come from: the two data sets, fetched and checked, and pictures of one's own."""
