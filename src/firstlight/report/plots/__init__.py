"""One file a picture: each turns frames into one Altair chart."""
