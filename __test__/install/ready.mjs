// As much as a program needs before it can join.

import 'ringfence'
