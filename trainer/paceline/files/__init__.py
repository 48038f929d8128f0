"""Files that come from outside are read within limits; files of a run are written for its owner alone."""
