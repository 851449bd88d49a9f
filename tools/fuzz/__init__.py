"""The fuzz room: broken models, options, data, containers and reports, thrown at the command line by the thousand."""
