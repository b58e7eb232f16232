// What the library says about itself.
#include "portable.h"

// Changes with any signature of the C interface.
CPN_API int cpn_native_abi() { return 4; }

// Changes with any change of the labels that superpixels gives.
CPN_API int cpn_superpixels_version() { return 1; }
