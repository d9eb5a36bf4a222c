"""From a folder of images to a configuration, sized for the time and memory there are."""
