from ml_collections import config_dict as config_dict
from ml_collections.config_dict import ConfigDict as ConfigDict
