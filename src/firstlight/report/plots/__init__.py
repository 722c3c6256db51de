"""One file per picture: each turns frames into an Altair chart."""
