"""The order in which things happen, one file a verb; what programs import.  Tells its steps, prints nothing."""
