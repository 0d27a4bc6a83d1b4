"""bitswitch: train a network once at several bit-widths, store it once as integers, run it at any of them."""
