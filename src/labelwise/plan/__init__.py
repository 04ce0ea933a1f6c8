"""From what the scans, the labels and the machine are like to the settings that a recipe leaves open."""
