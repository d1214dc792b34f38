"""The parts of the report, one file each: `section(facts)` gives a Section, or None where there is nothing to say."""
