"""What things cost: the stages of one model on one machine, against each other and against what it can do."""
