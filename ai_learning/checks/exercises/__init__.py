"""One file a day: stubs, ladders, hints, and the wrong answers that each ladder must name."""
