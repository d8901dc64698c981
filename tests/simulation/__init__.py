"""The addon's own code in virtual time, in a model of the world, with faults that follow from a seed."""
